-- Lending library: schema, some rows, and the reports that the desk runs every morning (SQLite dialect).
PRAGMA foreign_keys = ON;

CREATE TABLE branch (
    id    INTEGER PRIMARY KEY,
    name  TEXT NOT NULL UNIQUE
);

CREATE TABLE title (
    isbn    TEXT PRIMARY KEY CHECK (length(isbn) IN (10, 13)),
    name    TEXT NOT NULL,
    author  TEXT NOT NULL,
    year    INTEGER
);

CREATE TABLE copy (
    barcode   INTEGER PRIMARY KEY,
    isbn      TEXT NOT NULL REFERENCES title ON DELETE RESTRICT,
    branch_id INTEGER NOT NULL REFERENCES branch
);

CREATE TABLE loan (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    barcode  INTEGER NOT NULL REFERENCES copy,
    member   TEXT NOT NULL,
    taken    DATE NOT NULL DEFAULT (date('now')),
    due      DATE NOT NULL,
    returned DATE,
    CHECK (due > taken)
);

-- A copy can be out only once at a time.
CREATE UNIQUE INDEX loan_open ON loan (barcode) WHERE returned IS NULL;
CREATE INDEX loan_member ON loan (member, taken DESC);

INSERT INTO branch (name) VALUES ('Harbour'), ('Old Mill'), ('Hilltop');
INSERT INTO title VALUES
    ('9780000000011', 'Knots for the Impatient', 'R. Vasquez', 2011),
    ('9780000000028', 'A Field Guide to Rust',   'M. Oduya',   2019),
    ('9780000000035', 'The Quiet Engine',        'L. Brandt',  1987);
INSERT INTO copy VALUES (1001, '9780000000011', 1), (1002, '9780000000011', 2),
                        (1003, '9780000000028', 1), (1004, '9780000000035', 3);
INSERT INTO loan (barcode, member, taken, due, returned) VALUES
    (1001, 'M-204', '2030-01-03', '2030-01-24', '2030-01-20'),
    (1001, 'M-118', '2030-02-01', '2030-02-22', NULL),
    (1003, 'M-204', '2030-02-11', '2030-03-04', NULL);

-- Overdue on a given day, the oldest first, with the fine at 0.20 per day capped at 8.00.
SELECT l.member,
       t.name,
       l.due,
       CAST(julianday('2030-03-10') - julianday(l.due) AS INTEGER)             AS days_late,
       ROUND(MIN(8.00, 0.20 * (julianday('2030-03-10') - julianday(l.due))), 2) AS fine
FROM   loan l
JOIN   copy  c USING (barcode)
JOIN   title t USING (isbn)
WHERE  l.returned IS NULL
  AND  l.due < '2030-03-10'
ORDER  BY l.due, l.member;

-- How often has each title gone out, and what rank does that give it in its branch?
WITH counts AS (
    SELECT c.branch_id, c.isbn, COUNT(l.id) AS n
    FROM   copy c
    LEFT   JOIN loan l ON l.barcode = c.barcode
    GROUP  BY c.branch_id, c.isbn
)
SELECT b.name AS branch, t.name AS title, n,
       RANK() OVER (PARTITION BY branch_id ORDER BY n DESC) AS place
FROM   counts
JOIN   branch b ON b.id = branch_id
JOIN   title  t USING (isbn)
ORDER  BY branch, place;

-- Calendar of one week, by recursion.
WITH RECURSIVE week(d) AS (
    SELECT date('2030-03-04')
    UNION ALL
    SELECT date(d, '+1 day') FROM week WHERE d < '2030-03-10'
)
SELECT d, (SELECT COUNT(*) FROM loan WHERE taken <= d AND COALESCE(returned, '9999-12-31') > d) AS out
FROM   week;

BEGIN;
UPDATE loan SET returned = '2030-03-10' WHERE barcode = 1001 AND returned IS NULL;
COMMIT;
