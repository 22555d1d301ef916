-- Who is one person, and who is to be forgotten.

-- merge_id               the merge's id; never changes
-- primary_customer_id    whose profile stays
-- secondary_customer_id  whose profile goes up in it; NULL where only an address is known
-- secondary_email        the address of a profile without an id, trimmed; NULL where there is none
-- merged_at              when it was decided, UTC
-- row_version            the merge's
CREATE VIEW retention.merges AS
SELECT
    m.merge_id,
    m.primary_customer_id,
    m.secondary_customer_id,
    NULLIF(LTRIM(RTRIM(m.secondary_email)), N'') AS secondary_email,
    m.merged_at,
    m.row_version
FROM shop.customer_merges AS m;
GO

-- removal_id   the removal's id; never changes
-- customer_id  whose it is; its row in shop.customers may be gone
-- action       'delete': the profile and all its data; 'suppress': and nothing is taken for that id again;
--              'restore': things are taken again
-- removed_at   when it was decided, UTC
-- row_version  the removal's
CREATE VIEW retention.removals AS
SELECT
    r.removal_id,
    r.customer_id,
    r.action,
    r.removed_at,
    r.row_version
FROM shop.customer_removals AS r;
GO
