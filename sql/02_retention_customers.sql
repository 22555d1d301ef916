-- The profiles: one row per customer, flat; a column's name is the attribute's name at Customer.io.
-- Customers without an order are there too. Counts, amounts, flags and tiers are never NULL, because NULL leaves an
-- attribute at Customer.io as it is. Nothing here depends on the clock: no cursor sees time passing.
-- An order counts when it is paid and neither cancelled nor a test: shop.paid_orders.

CREATE SCHEMA retention;
GO

-- customer_id              the identifier at Customer.io, as text
-- email                    where to write to, trimmed; NULL leaves what Customer.io holds alone. Of the customers that
--                          share an address, whatever its case, one has it here: who paid an order last, and of these,
--                          or where nobody did, the lowest id. The others have NULL
-- created_at               when the account was opened, UTC
-- first_order_at           when the first order that counts was paid, UTC; NULL before it
-- last_order_at            when the latest order that counts was paid, UTC; NULL before the first
-- orders_count             orders that count, refunded ones too
-- ltv                      what those orders came to less what was refunded of them, in ltv_currency; below zero
--                          where more went back, as a rate that moved can do
-- ltv_currency             the base currency that every amount here is in
-- is_subscriber            whether a subscription is active; a paused one is not
-- subscription_status      of all subscriptions the liveliest: 'active', 'paused', 'canceled', or 'none'
-- refund_flag              on: a refund or chargeback of any order but a test was recorded.
--                          off: an order that counts was paid after the last one was recorded; or there was none
-- last_refund_at           when money went back last, UTC, however late that was recorded; NULL: never
-- vip_tier                 by ltv: 'gold' from 1,000, 'silver' from 300, 'bronze' from 100, else 'none'
-- preferred_category       the category with the most pieces in orders that count, of equals the first by name;
--                          NULL without such an order
-- last_purchased_sku       of the latest order that counts the line with the highest amount; NULL without one
-- last_fulfilled_at        when an order that counts was last handed over whole, UTC; NULL: never
-- gross_margin_bucket      of all lines of orders that count: 'high' where goods cost at most half of what they
--                          brought in, 'medium' up to 70 %, 'low' above; 'none' where nothing came in
-- do_not_discount          whether the shop decided so
-- support_escalation_open  whether there is an open ticket that was escalated
CREATE VIEW retention.customers AS
SELECT
    c.customer_id,
    CASE WHEN c.email_key IS NOT NULL AND NOT EXISTS (
        SELECT 1
        FROM shop.customers AS rival
        OUTER APPLY (SELECT MAX(p.paid_at) AS last_order_at FROM shop.paid_orders AS p
                     WHERE p.customer_id = rival.customer_id) AS theirs
        WHERE rival.email_key = c.email_key
          AND rival.customer_id <> c.customer_id
          AND (theirs.last_order_at > o.last_order_at
               OR (theirs.last_order_at IS NOT NULL AND o.last_order_at IS NULL)
               OR (rival.customer_id < c.customer_id
                   AND (theirs.last_order_at = o.last_order_at
                        OR (theirs.last_order_at IS NULL AND o.last_order_at IS NULL))))
    ) THEN LTRIM(RTRIM(c.email)) END AS email,
    c.created_at,
    o.first_order_at,
    o.last_order_at,
    o.orders_count,
    v.ltv,
    CAST('USD' AS char(3)) AS ltv_currency,
    CAST(CASE WHEN s.liveliest = 3 THEN 1 ELSE 0 END AS bit) AS is_subscriber,
    CAST(CASE s.liveliest WHEN 3 THEN 'active' WHEN 2 THEN 'paused' WHEN 1 THEN 'canceled' ELSE 'none' END
         AS varchar(20)) AS subscription_status,
    CAST(CASE WHEN r.last_recorded_at IS NULL OR o.last_order_at > r.last_recorded_at THEN 0 ELSE 1 END AS bit)
        AS refund_flag,
    r.last_refund_at,
    CAST(CASE WHEN v.ltv >= 1000 THEN 'gold' WHEN v.ltv >= 300 THEN 'silver' WHEN v.ltv >= 100 THEN 'bronze'
         ELSE 'none' END AS varchar(20)) AS vip_tier,
    preferred.category AS preferred_category,
    latest.sku AS last_purchased_sku,
    o.last_fulfilled_at,
    CAST(CASE WHEN ISNULL(m.revenue, 0) <= 0 THEN 'none' WHEN m.cost <= 0.5 * m.revenue THEN 'high'
         WHEN m.cost <= 0.7 * m.revenue THEN 'medium' ELSE 'low' END AS varchar(20)) AS gross_margin_bucket,
    c.do_not_discount,
    CAST(CASE WHEN t.escalations > 0 THEN 1 ELSE 0 END AS bit) AS support_escalation_open
FROM shop.customers AS c
-- Without GROUP BY each of these is one row for every customer, and a seek for those of a short pass.
CROSS APPLY (
    SELECT
        COUNT(*) AS orders_count,
        SUM(p.base_total) AS base_total,
        MIN(p.paid_at) AS first_order_at,
        MAX(p.paid_at) AS last_order_at,
        MAX(p.fulfilled_at) AS last_fulfilled_at
    FROM shop.paid_orders AS p
    WHERE p.customer_id = c.customer_id
) AS o
CROSS APPLY (
    SELECT
        -- What went back of a cancelled order never was lifetime value, but the person did see a refund.
        SUM(CASE WHEN p.paid_at IS NOT NULL AND p.status <> 'cancelled'
                 THEN CAST(f.amount * f.rate_to_base AS decimal(18,2)) END) AS base_amount,
        MAX(f.refunded_at) AS last_refund_at,
        MAX(f.recorded_at) AS last_recorded_at
    FROM shop.orders AS p
    JOIN shop.refunds AS f ON f.order_id = p.order_id
    WHERE p.customer_id = c.customer_id
      AND p.is_test = 0
) AS r
CROSS APPLY (
    SELECT CAST(ISNULL(o.base_total, 0) - ISNULL(r.base_amount, 0) AS decimal(18,2)) AS ltv
) AS v
CROSS APPLY (
    SELECT
        CAST(SUM(l.amount * p.rate_to_base) AS decimal(18,2)) AS revenue,
        CAST(SUM(l.quantity * l.unit_cost) AS decimal(18,2)) AS cost
    FROM shop.paid_orders AS p
    JOIN shop.order_lines AS l ON l.order_id = p.order_id
    WHERE p.customer_id = c.customer_id
) AS m
CROSS APPLY (
    SELECT MAX(CASE u.status WHEN 'active' THEN 3 WHEN 'paused' THEN 2 ELSE 1 END) AS liveliest
    FROM shop.subscriptions AS u
    WHERE u.customer_id = c.customer_id
) AS s
CROSS APPLY (
    SELECT COUNT(*) AS escalations
    FROM shop.support_tickets AS k
    WHERE k.customer_id = c.customer_id
      AND k.escalated = 1
      AND k.closed_at IS NULL
) AS t
OUTER APPLY (
    SELECT TOP (1) g.category
    FROM shop.paid_orders AS p
    JOIN shop.order_lines AS l ON l.order_id = p.order_id
    JOIN shop.products AS g ON g.sku = l.sku
    WHERE p.customer_id = c.customer_id
    GROUP BY g.category
    ORDER BY SUM(l.quantity) DESC, g.category
) AS preferred
OUTER APPLY (
    SELECT TOP (1) l.sku
    FROM shop.paid_orders AS p
    JOIN shop.order_lines AS l ON l.order_id = p.order_id
    WHERE p.customer_id = c.customer_id
    ORDER BY p.paid_at DESC, p.order_id DESC, l.amount DESC, l.line_no
) AS latest;
GO

-- Which customers moved: every base table behind retention.customers, so that a pass costs the source what
-- changed and no aggregate. All orders, not only those that count: an order that is cancelled must be seen.
-- What it cannot show, and only a comparison of everything finds: a row that is gone (a deleted order, line, refund,
-- subscription or ticket), the former owner of a row that changed hands, and, when somebody gives up a shared
-- address, the person who has it from then on.
--
-- customer_id  whose profile to read again
-- row_version  the change; several rows of one customer, or none, are fine
CREATE VIEW retention.customer_changes AS
SELECT c.customer_id, c.row_version FROM shop.customers AS c
UNION ALL
SELECT o.customer_id, o.row_version FROM shop.orders AS o
UNION ALL
SELECT o.customer_id, l.row_version
FROM shop.order_lines AS l
JOIN shop.orders AS o ON o.order_id = l.order_id
UNION ALL
-- A category that is renamed moves everybody who bought of it.
SELECT o.customer_id, g.row_version
FROM shop.products AS g
JOIN shop.order_lines AS l ON l.sku = g.sku
JOIN shop.orders AS o ON o.order_id = l.order_id
UNION ALL
SELECT o.customer_id, f.row_version
FROM shop.refunds AS f
JOIN shop.orders AS o ON o.order_id = f.order_id
UNION ALL
SELECT u.customer_id, u.row_version FROM shop.subscriptions AS u
UNION ALL
SELECT t.customer_id, t.row_version FROM shop.support_tickets AS t
UNION ALL
-- Those who share an address: a new customer, or a new order of one of them, may take it from another.
SELECT rival.customer_id, c.row_version
FROM shop.customers AS c
JOIN shop.customers AS rival ON rival.email_key = c.email_key AND rival.customer_id <> c.customer_id
UNION ALL
SELECT rival.customer_id, o.row_version
FROM shop.orders AS o
JOIN shop.customers AS c ON c.customer_id = o.customer_id
JOIN shop.customers AS rival ON rival.email_key = c.email_key AND rival.customer_id <> c.customer_id;
GO
