-- The event Order Placed: one row per paid order, dated when it was paid. Cancelled and test orders are left out.

-- customer_id             whose event it is
-- event_name              'Order Placed'
-- event_time              when the order was paid, UTC; never changes
-- event_id                the order's id; never changes
-- row_version             the order's, so an edited order is read again and recognised as sent
-- order_id                the order's id
-- order_number            1 for the person's first order, 2 for the second, ...
-- items                   pieces in the order
-- total                   what the customer paid, in currency
-- currency                ISO 4217
-- placed_at               when the order was made, UTC
-- [person.email]          the person's state now, by the expressions of retention.customers, because it is read
-- [person.orders_count]   from there: a buyer's very first order meets a profile that can be mailed, and a
-- [person.last_order_at]  journey that starts on the event sees the order counted and, where it was on,
-- [person.ltv]            the refund flag off
-- [person.refund_flag]
CREATE VIEW retention.orders AS
SELECT
    o.customer_id,
    CAST('Order Placed' AS varchar(100)) AS event_name,
    o.paid_at AS event_time,
    o.order_id AS event_id,
    o.row_version,
    o.order_id,
    n.order_number,
    o.items,
    o.total,
    o.currency,
    o.placed_at,
    c.email AS [person.email],
    c.orders_count AS [person.orders_count],
    c.last_order_at AS [person.last_order_at],
    c.ltv AS [person.ltv],
    c.refund_flag AS [person.refund_flag]
FROM shop.paid_orders AS o
CROSS APPLY (
    SELECT COUNT(*) AS order_number
    FROM shop.paid_orders AS e
    WHERE e.customer_id = o.customer_id
      AND (e.paid_at < o.paid_at OR (e.paid_at = o.paid_at AND e.order_id <= o.order_id))
) AS n
JOIN retention.customers AS c ON c.customer_id = o.customer_id;
GO
