-- The event Refund Issued: one row per refund and chargeback of any order but a test, cancelled orders too.
-- It is dated when this database learned of it: a refund that lands nine days late still starts the apology.

-- customer_id              whose event it is: the order's
-- event_name               'Refund Issued'
-- event_time               when the refund was recorded, UTC; never changes
-- event_id                 the refund's id; never changes
-- row_version              the refund's
-- refund_id                the refund's id
-- refund_type              'partial', 'full' or 'chargeback'
-- amount                   what went back, positive, in currency
-- currency                 ISO 4217
-- refunded_at              when the money went back, UTC
-- order_id                 the order that it was for
-- order_total              what the customer had paid for it, in order_currency
-- order_currency           ISO 4217
-- [person.email]           the person's state now, by the expressions of retention.customers
-- [person.refund_flag]     false where an order was paid since
-- [person.last_refund_at]
-- [person.ltv]
CREATE VIEW retention.refunds AS
SELECT
    o.customer_id,
    CAST('Refund Issued' AS varchar(100)) AS event_name,
    f.recorded_at AS event_time,
    f.refund_id AS event_id,
    f.row_version,
    f.refund_id,
    f.refund_type,
    f.amount,
    f.currency,
    f.refunded_at,
    f.order_id,
    o.total AS order_total,
    o.currency AS order_currency,
    c.email AS [person.email],
    c.refund_flag AS [person.refund_flag],
    c.last_refund_at AS [person.last_refund_at],
    c.ltv AS [person.ltv]
FROM shop.refunds AS f
JOIN shop.orders AS o ON o.order_id = f.order_id
JOIN retention.customers AS c ON c.customer_id = o.customer_id
WHERE o.is_test = 0;
GO
