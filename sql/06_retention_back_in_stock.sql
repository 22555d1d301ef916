-- The event Back In Stock Requested: one row per request to be told when a product is there again.

-- customer_id     whose event it is
-- event_name      'Back In Stock Requested'
-- event_time      when it was asked for, UTC; never changes
-- event_id        the request's id; never changes
-- row_version     the request's
-- sku             the product that was asked for
-- product_name    its name, for the mail
-- category        its category
-- [person.email]  the person's state now, by the expression of retention.customers: whoever asks may be brand-new
CREATE VIEW retention.back_in_stock AS
SELECT
    b.customer_id,
    CAST('Back In Stock Requested' AS varchar(100)) AS event_name,
    b.requested_at AS event_time,
    b.request_id AS event_id,
    b.row_version,
    b.sku,
    g.name AS product_name,
    g.category,
    c.email AS [person.email]
FROM shop.back_in_stock_requests AS b
JOIN shop.products AS g ON g.sku = b.sku
JOIN retention.customers AS c ON c.customer_id = b.customer_id;
GO
