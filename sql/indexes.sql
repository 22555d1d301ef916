-- What the reference views want beside the indexes of 01_shop.sql, which are those that passes read by: every row_version,
-- the times of carts, and a person's orders. These here are for what a person asks for:
--
--   going live, or a resync by time    reads events in ranges of their time; without an index on it, each of
--                                      possibly thousands of slices reads the whole table
--   a resync of some people, a QA sync  looks for the events of these people
--
-- Each costs a little at every write. Run it once, after the numbered scripts. Where the tables are large and in use,
-- add WITH (ONLINE = ON) to each, if the server's edition has it (Azure SQL does). For your own tables: the same, for
-- each view's event_time, customer_id and cursor. No machine of ours has measured them.

CREATE INDEX ix_orders_paid_at ON shop.orders (paid_at)
    INCLUDE (customer_id, status, placed_at, fulfilled_at, items, total, currency, rate_to_base, is_test, row_version);
GO

CREATE INDEX ix_refunds_recorded_at ON shop.refunds (recorded_at);
GO

CREATE INDEX ix_subscription_events_occurred_at ON shop.subscription_events (occurred_at);
GO

CREATE INDEX ix_subscription_events_subscription ON shop.subscription_events (subscription_id);
GO

CREATE INDEX ix_back_in_stock_requests_requested_at ON shop.back_in_stock_requests (requested_at);
GO

CREATE INDEX ix_back_in_stock_requests_customer ON shop.back_in_stock_requests (customer_id);
GO

CREATE INDEX ix_carts_customer ON shop.carts (customer_id)
    INCLUDE (order_id, currency, last_activity_at, abandoned_at);
GO
