CREATE TABLE `{prefix}site` (
  idsite INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  name VARCHAR(90) NOT NULL,
  main_url VARCHAR(255) NOT NULL,
  ts_created TIMESTAMP NULL,
  timezone VARCHAR(50) NOT NULL,
  type VARCHAR(255) NOT NULL DEFAULT 'website'
);
INSERT INTO `{prefix}site` (name, main_url, ts_created, timezone) VALUES
  ('one', 'https://one.example', '2020-01-01 00:00:00', 'UTC'),
  ('two', 'https://two.example', '2020-01-01 00:00:00', 'Europe/Berlin'),
  ('three', 'https://three.example', '2020-01-01 00:00:00', 'America/New_York'),
  ('four', 'https://four.example', '2020-01-01 00:00:00', 'Pacific/Auckland');

CREATE TABLE `{prefix}option` (
  option_name VARCHAR(191) NOT NULL PRIMARY KEY,
  option_value LONGTEXT NOT NULL,
  autoload TINYINT NOT NULL DEFAULT 1
);
INSERT INTO `{prefix}option` VALUES
  ('version_core', '{version}', 1),
  ('install_version', '{version}', 0),
  ('MatomoUpdateHistory', '{version},', 0);

CREATE TABLE `{prefix}log_visit` (
  idvisit BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  idsite INT UNSIGNED NOT NULL,
  idvisitor BINARY(8) NOT NULL,
  config_id BINARY(8) NOT NULL,
  location_ip VARBINARY(16) NOT NULL,
  user_id VARCHAR(200) NULL,
  visit_first_action_time DATETIME NOT NULL,
  visit_last_action_time DATETIME NOT NULL,
  visit_total_time INT UNSIGNED NOT NULL DEFAULT 0,
  visit_total_actions INT UNSIGNED NULL,
  visit_total_interactions MEDIUMINT UNSIGNED NULL DEFAULT 0,
  visit_total_events INT UNSIGNED NULL,
  INDEX index_idsite_config_datetime (idsite, config_id, visit_last_action_time),
  INDEX index_idsite_datetime (idsite, visit_last_action_time),
  INDEX index_idsite_idvisitor_time (idsite, idvisitor, visit_last_action_time DESC)
);

CREATE TABLE `{prefix}log_link_visit_action` (
  idlink_va BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  idsite INT UNSIGNED NOT NULL,
  idvisitor BINARY(8) NOT NULL,
  idvisit BIGINT UNSIGNED NOT NULL,
  server_time DATETIME NOT NULL,
  idpageview CHAR(6) NULL,
  pageview_position MEDIUMINT UNSIGNED NULL,
  idaction_url INT UNSIGNED NULL,
  idaction_name INT UNSIGNED NULL,
  idaction_event_category INT UNSIGNED NULL,
  idaction_event_action INT UNSIGNED NULL,
  idaction_content_name INT UNSIGNED NULL,
  idaction_content_piece INT UNSIGNED NULL,
  custom_float DOUBLE NULL,
  INDEX index_idvisit (idvisit),
  INDEX index_idsite_servertime (idsite, server_time)
);

CREATE TABLE `{prefix}log_action` (
  idaction INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  name VARCHAR(4096) NULL,
  hash INT UNSIGNED NOT NULL,
  type TINYINT UNSIGNED NULL,
  url_prefix TINYINT NULL,
  INDEX index_type_hash (type, hash)
);

CREATE TABLE `{prefix}log_conversion` (
  idvisit BIGINT UNSIGNED NOT NULL,
  idsite INT UNSIGNED NOT NULL,
  idvisitor BINARY(8) NOT NULL,
  server_time DATETIME NOT NULL,
  idlink_va BIGINT UNSIGNED NULL,
  idaction_url INT UNSIGNED NULL,
  idgoal INT NOT NULL,
  buster INT UNSIGNED NOT NULL,
  idorder VARCHAR(100) NULL,
  revenue FLOAT NULL,
  PRIMARY KEY (idvisit, idgoal, buster),
  UNIQUE INDEX unique_idsite_idorder (idsite, idorder),
  INDEX index_idsite_datetime (idsite, server_time)
);

CREATE TABLE `{prefix}log_conversion_item` (
  idsite INT UNSIGNED NOT NULL,
  idvisitor BINARY(8) NOT NULL,
  server_time DATETIME NOT NULL,
  idvisit BIGINT UNSIGNED NOT NULL,
  idorder VARCHAR(100) NOT NULL,
  idaction_sku INT UNSIGNED NOT NULL,
  idaction_name INT UNSIGNED NOT NULL DEFAULT 0,
  idaction_category INT UNSIGNED NOT NULL DEFAULT 0,
  price DOUBLE NOT NULL DEFAULT 0,
  quantity INT UNSIGNED NOT NULL DEFAULT 1,
  deleted TINYINT UNSIGNED NOT NULL DEFAULT 0,
  PRIMARY KEY (idvisit, idorder, idaction_sku),
  INDEX index_idsite_servertime (idsite, server_time)
);

CREATE USER IF NOT EXISTS '{reader}'@'127.0.0.1' IDENTIFIED BY '{reader_password}';
CREATE USER IF NOT EXISTS '{reader}'@'localhost' IDENTIFIED BY '{reader_password}';
GRANT SELECT ON `{database}`.* TO '{reader}'@'127.0.0.1', '{reader}'@'localhost';
CREATE USER IF NOT EXISTS '{writer}'@'127.0.0.1' IDENTIFIED BY '{writer_password}';
CREATE USER IF NOT EXISTS '{writer}'@'localhost' IDENTIFIED BY '{writer_password}';
GRANT ALL ON `{database}`.* TO '{writer}'@'127.0.0.1', '{writer}'@'localhost';
