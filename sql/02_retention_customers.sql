-- The profiles: one row per customer, flat; a column's name is the attribute's name at Customer.io.
-- Customers without an order are there too. Counts and flags are never NULL.

CREATE SCHEMA retention;
GO

-- customer_id          the identifier at Customer.io, as text
-- email                where to write to; NULL leaves what Customer.io holds alone
-- created_at           when the account was opened, UTC
-- first_order_at       when the first order was paid, UTC; NULL before it
-- last_order_at        when the latest order was paid, UTC; NULL before the first
-- orders_count         paid orders, without cancelled and test orders
-- items_count          pieces in those orders
-- ltv                  what those orders came to, in ltv_currency
-- ltv_currency         the base currency that every amount here is in
-- average_order_value  ltv per order, to the cent; NULL before the first order
-- is_repeat_customer   whether there are two orders or more
CREATE VIEW retention.customers AS
SELECT
    c.customer_id,
    c.email,
    c.created_at,
    o.first_order_at,
    o.last_order_at,
    o.orders_count,
    ISNULL(o.items_count, 0) AS items_count,
    CAST(ISNULL(o.base_total, 0) AS decimal(18,2)) AS ltv,
    CAST('USD' AS char(3)) AS ltv_currency,
    CAST(o.base_total / NULLIF(o.orders_count, 0) AS decimal(18,2)) AS average_order_value,
    CAST(CASE WHEN o.orders_count >= 2 THEN 1 ELSE 0 END AS bit) AS is_repeat_customer
FROM shop.customers AS c
CROSS APPLY (
    -- Without GROUP BY this is one row for every customer, and a seek for those of a short pass.
    SELECT
        COUNT(*) AS orders_count,
        SUM(p.items) AS items_count,
        SUM(p.base_total) AS base_total,
        MIN(p.paid_at) AS first_order_at,
        MAX(p.paid_at) AS last_order_at
    FROM shop.paid_orders AS p
    WHERE p.customer_id = c.customer_id
) AS o;
GO

-- Which customers moved: every base table behind retention.customers, so that a pass costs the source what
-- changed and no aggregate. All orders, not only those that count: an order that is cancelled must be seen.
-- What it cannot show is a row that is gone: a deleted order, or the former owner of one that changed hands.
--
-- customer_id  whose profile to read again
-- row_version  the change; several rows of one customer, or none, are fine
CREATE VIEW retention.customer_changes AS
SELECT c.customer_id, c.row_version FROM shop.customers AS c
UNION ALL
SELECT o.customer_id, o.row_version FROM shop.orders AS o;
GO
