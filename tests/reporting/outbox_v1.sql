-- A file as version 1 of the outbox has written it: `sqlite3.Connection.iterdump`, and its two pragmas.
BEGIN TRANSACTION;
CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))),
    org TEXT NOT NULL,
    feature TEXT NOT NULL,
    n INTEGER NOT NULL,
    reports INTEGER NOT NULL DEFAULT 1,
    at_ms INTEGER,
    clobber INTEGER NOT NULL,
    barrier INTEGER NOT NULL,
    state TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_ms INTEGER NOT NULL,
    lease_ms INTEGER NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "batch" VALUES(1,'322c92d1934496cf7ae0e0bc71a78c42','org:acme','feature:calls',1,1,NULL,0,0,'held',1706659200000,1,1706659200000,1706659260000,'ambiguous','the connection was lost');
INSERT INTO "batch" VALUES(2,'a6c1fd06b34c1dbd87ccf85d7d5db38b','org:acme','feature:calls',2,1,NULL,0,0,'buried',1706659200000,1,1706659200000,1706659260000,'org_not_found','who?');
INSERT INTO "batch" VALUES(3,'6f11abcb2d4d572d3a3624674563f1af','org:acme','feature:calls',3,1,NULL,0,0,'sent',1706659200000,0,1706659200000,1706659260000,'','');
INSERT INTO "batch" VALUES(4,'1f815d9a2529684bf62d1885776728f0','org:acme','feature:calls',9,2,NULL,0,0,'open',1706659200000,0,1706659200000,0,'','');
INSERT INTO "batch" VALUES(5,'e7079bf48c2faf0aa8a0bf3852698d0e','org:ümläut''','feature:calls',6,1,1706659199995,0,0,'sealed',1706659200000,0,1706659200000,0,'','');
INSERT INTO "batch" VALUES(6,'54001f2c03c5dee4ce7cb359a4bc7cde','org:b','feature:calls',7,1,NULL,1,1,'sealed',1706659200000,0,1706659200000,0,'','');
INSERT INTO "batch" VALUES(7,'ea38c53e850d4ef347c8067f29255318','org:b','feature:calls',8,1,NULL,0,0,'open',1706659200000,0,1706659200000,0,'','');
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "fact" VALUES('honours_keys','no');
INSERT INTO "fact" VALUES('server','http://tier.example.com');
CREATE TABLE known_key (key TEXT PRIMARY KEY, contents TEXT NOT NULL, until_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "known_key" VALUES('once','abc',1709683200000);
CREATE UNIQUE INDEX open_of ON batch (org, feature) WHERE state = 'open';
CREATE INDEX batch_of ON batch (org, feature, id);
CREATE INDEX waiting ON batch (due_ms, id) WHERE state IN ('open', 'sealed');
CREATE INDEX lease ON batch (lease_ms) WHERE state = 'sent';
CREATE INDEX key_age ON known_key (until_ms);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('batch',7);
COMMIT;
PRAGMA application_id = 1414090562;
PRAGMA user_version = 1;
