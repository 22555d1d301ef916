-- The events Subscription Started, Renewed, Paused and Canceled: one row per entry in a subscription's history.

-- customer_id                   whose event it is
-- event_name                    'Subscription Started', '... Renewed', '... Paused' or '... Canceled'
-- event_time                    when it happened, UTC; never changes
-- event_id                      the history entry's id; never changes
-- row_version                   the history entry's
-- subscription_id               tells several subscriptions of one person apart
-- plan                          the plan from then on
-- amount                        what one period of it costs, positive, in currency
-- currency                      ISO 4217
-- order_id                      the order that it made; NULL where it made none
-- next_renewal_at               when the next renewal is due, UTC; NULL where none is
-- [person.email]                the person's state now, by the expressions of retention.customers, which may be
-- [person.is_subscriber]        another than this event left behind
-- [person.subscription_status]
CREATE VIEW retention.subscriptions AS
SELECT
    s.customer_id,
    CAST(CASE e.kind WHEN 'started' THEN 'Subscription Started' WHEN 'renewed' THEN 'Subscription Renewed'
         WHEN 'paused' THEN 'Subscription Paused' WHEN 'canceled' THEN 'Subscription Canceled' END AS varchar(100))
        AS event_name,
    e.occurred_at AS event_time,
    e.subscription_event_id AS event_id,
    e.row_version,
    e.subscription_id,
    e.plan_name AS [plan],
    e.amount,
    e.currency,
    e.order_id,
    e.next_renewal_at,
    c.email AS [person.email],
    c.is_subscriber AS [person.is_subscriber],
    c.subscription_status AS [person.subscription_status]
FROM shop.subscription_events AS e
JOIN shop.subscriptions AS s ON s.subscription_id = e.subscription_id
JOIN retention.customers AS c ON c.customer_id = s.customer_id;
GO
