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
-- rights on matomo_option, which also holds salts and licence keys. Its last line says
-- that it has the privacy options, which an earlier form of it did not.
CREATE DATABASE IF NOT EXISTS matomo_edge;
CREATE OR REPLACE SQL SECURITY DEFINER VIEW matomo_edge.v_option AS
  SELECT option_name, option_value FROM matomo.matomo_option
  WHERE option_name = 'MatomoUpdateHistory' OR option_name LIKE 'version\_%'
    OR option_name LIKE 'PrivacyManager.%'
  UNION ALL SELECT 'sluice.privacy', '1';

CREATE USER IF NOT EXISTS 'sluice'@'10.%' IDENTIFIED BY 'PASSWORD' REQUIRE SSL WITH MAX_USER_CONNECTIONS 3;

GRANT SELECT (idsite, name, timezone, ts_created)
  ON matomo.matomo_site TO 'sluice'@'10.%';
GRANT SELECT (idlink_va, idsite, idvisitor, idvisit, server_time, idpageview, pageview_position, custom_float,
    idaction_url, idaction_name, idaction_event_category, idaction_event_action, idaction_content_name, idaction_content_piece)
  ON matomo.matomo_log_link_visit_action TO 'sluice'@'10.%';
GRANT SELECT (idaction, type, name)
  ON matomo.matomo_log_action TO 'sluice'@'10.%';
GRANT SELECT (idvisit, idsite, idvisitor, visit_last_action_time, visit_total_actions, visit_total_interactions, visit_total_events)
  ON matomo.matomo_log_visit TO 'sluice'@'10.%';
GRANT SELECT (idvisit, idsite, idgoal, idlink_va, server_time)
  ON matomo.matomo_log_conversion TO 'sluice'@'10.%';
GRANT SELECT ON matomo_edge.v_option TO 'sluice'@'10.%';

-- Optional: MySQL's own list of locks, to see an ALTER TABLE that waits.
-- GRANT SELECT ON performance_schema.metadata_locks TO 'sluice'@'10.%';

-- Optional: the list of running statements, to see an ALTER TABLE that copies, and LOCK
-- TABLES. It shows the account what all others run, visitors' data included; Sluice
-- reads only statements that change tables, and logs none.
-- GRANT PROCESS ON *.* TO 'sluice'@'10.%';

-- Optional: how far a replica is behind, for archiving that reads from one. On the
-- replica, for the account of mysql.reader-dsn-file; on MySQL REPLICATION CLIENT:
-- GRANT SLAVE MONITOR ON *.* TO 'sluice'@'10.%';

-- To undo it all:
-- DROP USER 'sluice'@'10.%'; DROP DATABASE matomo_edge;
