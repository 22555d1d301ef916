-- The events Cart Updated and Cart Abandoned, from carts of several lines. Carts are events, never attributes.
-- Left out are carts without lines, carts of nobody known, and carts that became orders: those that say so
-- themselves, and those whose person placed an order that is paid at or after the cart's last activity, on
-- whatever device. No cursor sees time passing: an abandoned cart appears once its hour has passed by the server's
-- clock, with that moment as updated_at, though no row was touched.

-- The carts that are still carts, with what is in them.
--
-- product_count  how many different products
-- skus           the first ten lines' products, in the order in which they were put in, with commas between
CREATE VIEW shop.open_carts AS
SELECT
    k.cart_id,
    k.customer_id,
    k.currency,
    k.last_activity_at,
    k.abandoned_at,
    l.items,
    l.total,
    l.product_count,
    CAST((
        SELECT STRING_AGG(f.sku, ',') WITHIN GROUP (ORDER BY f.line_no)
        FROM shop.cart_lines AS f
        WHERE f.cart_id = k.cart_id
          AND (SELECT COUNT(*) FROM shop.cart_lines AS e WHERE e.cart_id = k.cart_id AND e.line_no <= f.line_no) <= 10
    ) AS varchar(500)) AS skus
FROM shop.carts AS k
CROSS APPLY (
    SELECT
        SUM(n.quantity) AS items,
        CAST(SUM(n.amount) AS decimal(12,2)) AS total,
        COUNT(DISTINCT n.sku) AS product_count
    FROM shop.cart_lines AS n
    WHERE n.cart_id = k.cart_id
) AS l
WHERE k.order_id IS NULL
  AND l.items > 0
  AND NOT EXISTS (
      SELECT 1 FROM shop.paid_orders AS o
      WHERE o.customer_id = k.customer_id
        AND o.placed_at >= DATEADD(second, -1, k.last_activity_at)  -- an order's time has whole seconds
  );
GO

-- customer_id     whose event it is
-- event_name      'Cart Updated' or 'Cart Abandoned'
-- event_time      of Cart Updated the last activity, of Cart Abandoned the hour after it, UTC
-- event_id        the cart, 'updated' or 'abandoned', and the last activity: a cart that is touched again makes
--                 new events
-- updated_at      event_time: what a pass reads by
-- cart_id         the cart's id
-- items           pieces in it
-- total           what they come to, in currency
-- currency        ISO 4217
-- product_count   how many different products
-- skus            the first ten of them, with commas between
-- [person.email]  the person's state now, by the expression of retention.customers
CREATE VIEW retention.carts AS
SELECT
    k.customer_id,
    CAST('Cart Updated' AS varchar(100)) AS event_name,
    k.last_activity_at AS event_time,
    CAST(CONCAT('cart-', k.cart_id, '-updated-', CONVERT(varchar(23), k.last_activity_at, 121)) AS varchar(60))
        AS event_id,
    k.last_activity_at AS updated_at,
    k.cart_id,
    k.items,
    k.total,
    k.currency,
    k.product_count,
    k.skus,
    c.email AS [person.email]
FROM shop.open_carts AS k
JOIN retention.customers AS c ON c.customer_id = k.customer_id
UNION ALL
SELECT
    k.customer_id,
    CAST('Cart Abandoned' AS varchar(100)),
    k.abandoned_at,
    CAST(CONCAT('cart-', k.cart_id, '-abandoned-', CONVERT(varchar(23), k.last_activity_at, 121)) AS varchar(60)),
    k.abandoned_at,
    k.cart_id,
    k.items,
    k.total,
    k.currency,
    k.product_count,
    k.skus,
    c.email
FROM shop.open_carts AS k
JOIN retention.customers AS c ON c.customer_id = k.customer_id
WHERE k.abandoned_at <= SYSUTCDATETIME();
GO
