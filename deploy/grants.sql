-- The optional account of Sluice on Matomo's database, with the least rights.
--
-- It reads what tells whether Matomo can take hits (is the server writable, is an
-- upgrade under way, are the tables locked) and whether a hit of unknown outcome is
-- recorded. It changes nothing of Matomo's.
--
-- Replace before use: matomo (the database), matomo_ (the tables' prefix, as in
-- mysql.tables-prefix), '10.%' (where Sluice connects from), and the password. Run it
-- as a user that may create users. Then put into the file that mysql.dsn-file names,
-- mode 0600:   sluice:PASSWORD@tcp(db.example.org:3306)/matomo?tls=true

-- A schema of its own keeps Matomo's list of tables clean. The view is instead of
-- rights on matomo_option, which also holds salts and licence keys.
CREATE DATABASE IF NOT EXISTS matomo_edge;
CREATE OR REPLACE SQL SECURITY DEFINER VIEW matomo_edge.v_option AS
  SELECT option_name, option_value FROM matomo.matomo_option
  WHERE option_name IN ('version_core', 'MatomoUpdateHistory', 'install_version');

CREATE USER IF NOT EXISTS 'sluice'@'10.%' IDENTIFIED BY 'PASSWORD' REQUIRE SSL WITH MAX_USER_CONNECTIONS 3;

GRANT SELECT (idsite, timezone, ts_created)
  ON matomo.matomo_site TO 'sluice'@'10.%';
GRANT SELECT (idlink_va, idsite, idvisitor, idvisit, server_time, idpageview)
  ON matomo.matomo_log_link_visit_action TO 'sluice'@'10.%';
GRANT SELECT (idvisit, idsite, idvisitor, visit_first_action_time, visit_last_action_time)
  ON matomo.matomo_log_visit TO 'sluice'@'10.%';
GRANT SELECT (idvisit, idsite, idgoal, idorder, server_time)
  ON matomo.matomo_log_conversion TO 'sluice'@'10.%';
GRANT SELECT ON matomo_edge.v_option TO 'sluice'@'10.%';

-- Optional: MySQL's own list of locks, to see an ALTER TABLE that waits.
-- GRANT SELECT ON performance_schema.metadata_locks TO 'sluice'@'10.%';

-- To undo it all:
-- DROP USER 'sluice'@'10.%'; DROP DATABASE matomo_edge;
