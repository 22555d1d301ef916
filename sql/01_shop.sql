SET QUOTED_IDENTIFIER ON;
GO

-- The reference base schema: a small shop, as far as the retention views need one.
-- Your own tables take its place; only the views in `retention` are Tidemark's contract.
--
-- Run the scripts in the order of their numbers, in an empty database; GO ends a batch.
-- Times are UTC. A row_version moves with every change of its row: it is what a pass reads by, so it is indexed.
-- QUOTED_IDENTIFIER is on, as every driver but sqlcmd has it: indexed computed columns want it, at every write.
-- Amounts are positive; rate_to_base is what one unit of their currency was worth in USD, the base currency.

CREATE SCHEMA shop;
GO

CREATE TABLE shop.customers (
    customer_id     int           NOT NULL CONSTRAINT pk_customers PRIMARY KEY,  -- never reused, never changed
    email           nvarchar(320) NULL,                        -- as it was typed in; NULL: not known
    created_at      datetime2(0)  NOT NULL,                    -- when the account was opened
    do_not_discount bit           NOT NULL DEFAULT 0,          -- the shop's own decision
    row_version     rowversion    NOT NULL,
    email_key       AS LOWER(NULLIF(LTRIM(RTRIM(email)), N''))  -- who shares an address is found by it
);
GO

CREATE INDEX ix_customers_row_version ON shop.customers (row_version);
GO

CREATE INDEX ix_customers_email_key ON shop.customers (email_key);
GO

CREATE TABLE shop.products (
    sku         varchar(40)   NOT NULL CONSTRAINT pk_products PRIMARY KEY,
    name        nvarchar(200) NOT NULL,
    category    nvarchar(60)  NOT NULL,
    unit_cost   decimal(12,2) NOT NULL,  -- what a piece costs the shop today, in USD
    row_version rowversion    NOT NULL
);
GO

CREATE INDEX ix_products_row_version ON shop.products (row_version);
GO

CREATE TABLE shop.orders (
    order_id     int           NOT NULL CONSTRAINT pk_orders PRIMARY KEY,
    customer_id  int           NOT NULL CONSTRAINT fk_orders_customers REFERENCES shop.customers (customer_id),
    status       varchar(20)   NOT NULL,                    -- 'pending', 'paid' or 'cancelled'
    placed_at    datetime2(0)  NOT NULL,                    -- when the order was made
    paid_at      datetime2(0)  NULL,                        -- when the money came in; set once, NULL until then
    fulfilled_at datetime2(0)  NULL,                        -- when all of it had been handed over; NULL until then
    items        int           NOT NULL,                    -- pieces, over all lines
    total        decimal(12,2) NOT NULL,                    -- what the customer paid, in `currency`
    currency     char(3)       NOT NULL DEFAULT 'USD',      -- ISO 4217
    rate_to_base decimal(18,8) NOT NULL DEFAULT 1,
    is_test      bit           NOT NULL DEFAULT 0,          -- made by the shop's own people
    row_version  rowversion    NOT NULL
);
GO

CREATE INDEX ix_orders_row_version ON shop.orders (row_version);
GO

-- A person's orders by time: what an aggregate over one person reads, and all that it reads.
CREATE INDEX ix_orders_customer ON shop.orders (customer_id, paid_at)
    INCLUDE (status, placed_at, fulfilled_at, items, total, currency, rate_to_base, is_test);
GO

CREATE TABLE shop.order_lines (
    order_id    int           NOT NULL CONSTRAINT fk_order_lines_orders REFERENCES shop.orders (order_id),
    line_no     int           NOT NULL,
    sku         varchar(40)   NOT NULL CONSTRAINT fk_order_lines_products REFERENCES shop.products (sku),
    quantity    int           NOT NULL,
    amount      decimal(12,2) NOT NULL,  -- what the line came to after discounts, in the order's currency
    unit_cost   decimal(12,2) NOT NULL,  -- the product's at that time, in USD, so that a new cost rewrites no history
    row_version rowversion    NOT NULL,
    CONSTRAINT pk_order_lines PRIMARY KEY (order_id, line_no)
);
GO

CREATE INDEX ix_order_lines_row_version ON shop.order_lines (row_version);
GO

CREATE INDEX ix_order_lines_sku ON shop.order_lines (sku);
GO

CREATE TABLE shop.refunds (
    refund_id    int           NOT NULL CONSTRAINT pk_refunds PRIMARY KEY,
    order_id     int           NOT NULL CONSTRAINT fk_refunds_orders REFERENCES shop.orders (order_id),
    refund_type  varchar(20)   NOT NULL CHECK (refund_type IN ('partial', 'full', 'chargeback')),
    amount       decimal(12,2) NOT NULL CHECK (amount > 0),  -- what went back, in `currency`
    currency     char(3)       NOT NULL DEFAULT 'USD',
    rate_to_base decimal(18,8) NOT NULL DEFAULT 1,
    refunded_at  datetime2(0)  NOT NULL,                           -- when the money went back, which may be news
    recorded_at  datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),  -- when this database learned of it; never changed
    row_version  rowversion    NOT NULL
);
GO

CREATE INDEX ix_refunds_row_version ON shop.refunds (row_version);
GO

CREATE INDEX ix_refunds_order ON shop.refunds (order_id)
    INCLUDE (amount, rate_to_base, refunded_at, recorded_at);
GO

CREATE TABLE shop.subscriptions (
    subscription_id int          NOT NULL CONSTRAINT pk_subscriptions PRIMARY KEY,
    customer_id     int          NOT NULL CONSTRAINT fk_subscriptions_customers REFERENCES shop.customers (customer_id),
    status          varchar(20)  NOT NULL CHECK (status IN ('active', 'paused', 'canceled')),  -- as it is now
    started_at      datetime2(0) NOT NULL,
    row_version     rowversion   NOT NULL
);
GO

CREATE INDEX ix_subscriptions_row_version ON shop.subscriptions (row_version);
GO

CREATE INDEX ix_subscriptions_customer ON shop.subscriptions (customer_id) INCLUDE (status);
GO

-- What happened to a subscription, one row each, with its terms as they were from then on.
CREATE TABLE shop.subscription_events (
    subscription_event_id int    NOT NULL CONSTRAINT pk_subscription_events PRIMARY KEY,
    subscription_id int          NOT NULL
        CONSTRAINT fk_subscription_events_subscriptions REFERENCES shop.subscriptions (subscription_id),
    kind            varchar(20)  NOT NULL CHECK (kind IN ('started', 'renewed', 'paused', 'canceled')),
    occurred_at     datetime2(0) NOT NULL,     -- never changed
    plan_name       nvarchar(60) NOT NULL,
    amount          decimal(12,2) NOT NULL,    -- what one period costs, in `currency`
    currency        char(3)      NOT NULL DEFAULT 'USD',
    order_id        int          NULL,         -- the order that it made, where it made one
    next_renewal_at datetime2(0) NULL,         -- NULL: no renewal is due
    row_version     rowversion   NOT NULL
);
GO

CREATE INDEX ix_subscription_events_row_version ON shop.subscription_events (row_version);
GO

CREATE TABLE shop.back_in_stock_requests (
    request_id   int          NOT NULL CONSTRAINT pk_back_in_stock_requests PRIMARY KEY,
    customer_id  int          NOT NULL CONSTRAINT fk_back_in_stock_customers REFERENCES shop.customers (customer_id),
    sku          varchar(40)  NOT NULL CONSTRAINT fk_back_in_stock_products REFERENCES shop.products (sku),
    requested_at datetime2(0) NOT NULL,
    row_version  rowversion   NOT NULL
);
GO

CREATE INDEX ix_back_in_stock_requests_row_version ON shop.back_in_stock_requests (row_version);
GO

CREATE TABLE shop.carts (
    cart_id          int          NOT NULL CONSTRAINT pk_carts PRIMARY KEY,
    customer_id      int          NULL CONSTRAINT fk_carts_customers REFERENCES shop.customers (customer_id),
    order_id         int          NULL,                        -- the order that it became
    currency         char(3)      NOT NULL DEFAULT 'USD',
    last_activity_at datetime2(3) NOT NULL,                    -- the last change of the cart or any of its lines
    abandoned_at     AS DATEADD(minute, 60, last_activity_at)  -- when a cart that nobody touches counts as abandoned
);
GO

-- Who has a cart, and since when it rests: retention.carts reads by either time.
CREATE INDEX ix_carts_last_activity ON shop.carts (last_activity_at) INCLUDE (customer_id, order_id, currency);
GO

CREATE INDEX ix_carts_abandoned ON shop.carts (abandoned_at) INCLUDE (customer_id, order_id, currency, last_activity_at);
GO

CREATE TABLE shop.cart_lines (
    cart_id  int           NOT NULL CONSTRAINT fk_cart_lines_carts REFERENCES shop.carts (cart_id),
    line_no  int           NOT NULL,                  -- in the order in which they were put in
    sku      varchar(40)   NOT NULL CONSTRAINT fk_cart_lines_products REFERENCES shop.products (sku),
    quantity int           NOT NULL,
    amount   decimal(12,2) NOT NULL,                  -- what the line comes to, in the cart's currency
    CONSTRAINT pk_cart_lines PRIMARY KEY (cart_id, line_no)
);
GO

CREATE TABLE shop.support_tickets (
    ticket_id   int          NOT NULL CONSTRAINT pk_support_tickets PRIMARY KEY,
    customer_id int          NOT NULL CONSTRAINT fk_support_tickets_customers REFERENCES shop.customers (customer_id),
    opened_at   datetime2(0) NOT NULL,
    closed_at   datetime2(0) NULL,                 -- NULL: open
    escalated   bit          NOT NULL DEFAULT 0,
    row_version rowversion   NOT NULL
);
GO

CREATE INDEX ix_support_tickets_row_version ON shop.support_tickets (row_version);
GO

CREATE INDEX ix_support_tickets_customer ON shop.support_tickets (customer_id) INCLUDE (escalated, closed_at);
GO

-- Two records that are one person: the secondary one goes up in the primary one. Rows are added, never changed.
CREATE TABLE shop.customer_merges (
    merge_id              int           NOT NULL CONSTRAINT pk_customer_merges PRIMARY KEY,
    primary_customer_id   int           NOT NULL,
    secondary_customer_id int           NULL,      -- one of the two names the secondary record
    secondary_email       nvarchar(320) NULL,
    merged_at             datetime2(0)  NOT NULL,
    row_version           rowversion    NOT NULL,
    CHECK (secondary_customer_id IS NOT NULL OR secondary_email IS NOT NULL)
);
GO

CREATE INDEX ix_customer_merges_row_version ON shop.customer_merges (row_version);
GO

-- Who asked to be forgotten, or to be heard again. Rows are added, never changed; they outlive the customer's.
CREATE TABLE shop.customer_removals (
    removal_id  int          NOT NULL CONSTRAINT pk_customer_removals PRIMARY KEY,
    customer_id int          NOT NULL,
    action      varchar(20)  NOT NULL CHECK (action IN ('delete', 'suppress', 'restore')),
    removed_at  datetime2(0) NOT NULL,
    row_version rowversion   NOT NULL
);
GO

CREATE INDEX ix_customer_removals_row_version ON shop.customer_removals (row_version);
GO

-- The one definition of an order that counts. An event is sent for it and lifetime value adds it up,
-- so a journey never sees an order that the profile does not know.
CREATE VIEW shop.paid_orders AS
SELECT
    o.order_id,
    o.customer_id,
    o.placed_at,
    o.paid_at,
    o.fulfilled_at,
    o.items,
    o.total,
    o.currency,
    o.rate_to_base,
    CAST(o.total * o.rate_to_base AS decimal(18,2)) AS base_total,  -- `total` in the base currency, USD
    o.row_version
FROM shop.orders AS o
WHERE o.paid_at IS NOT NULL
  AND o.status <> 'cancelled'
  AND o.is_test = 0;
GO
