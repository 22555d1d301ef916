-- Who belongs to which segment, by the shop's own figures: what a segment of Customer.io is compared with, where
-- SEGMENTS maps the view to it. The segment's conditions there must say the same of the attributes.

-- The canary: buyers who came back of late. It moves every day, so it shows first where dates arrive as text.
-- At Customer.io: orders_count is greater than 1, and last_order_at is a timestamp within the past 60 days.
--
-- customer_id  who belongs to it
CREATE VIEW retention.segment_canary_repeat_recent AS
SELECT c.customer_id
FROM retention.customers AS c
WHERE c.orders_count >= 2
  AND c.last_order_at >= DATEADD(day, -60, SYSUTCDATETIME());
GO

-- The best customers. At Customer.io: vip_tier is equal to gold.
--
-- customer_id  who belongs to it
CREATE VIEW retention.segment_vip AS
SELECT c.customer_id
FROM retention.customers AS c
WHERE c.vip_tier = 'gold';
GO
