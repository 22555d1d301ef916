-- The reference base schema: a small shop, as far as the retention views need one.
-- Your own tables take its place; only the views in `retention` are Tidemark's contract.
--
-- Run the scripts in the order of their numbers, in an empty database; GO ends a batch.
-- Times are UTC. A row_version moves with every change of its row: it is what a pass reads by, so it is indexed.

CREATE SCHEMA shop;
GO

CREATE TABLE shop.customers (
    customer_id int           NOT NULL CONSTRAINT pk_customers PRIMARY KEY,  -- never reused, never changed
    email       nvarchar(320) NULL,                                          -- NULL: not known
    created_at  datetime2(0)  NOT NULL,                                      -- when the account was opened
    row_version rowversion    NOT NULL
);
GO

CREATE INDEX ix_customers_row_version ON shop.customers (row_version);
GO

CREATE TABLE shop.orders (
    order_id     int           NOT NULL CONSTRAINT pk_orders PRIMARY KEY,
    customer_id  int           NOT NULL CONSTRAINT fk_orders_customers REFERENCES shop.customers (customer_id),
    status       varchar(20)   NOT NULL,                    -- 'pending', 'paid' or 'cancelled'
    placed_at    datetime2(0)  NOT NULL,                    -- when the order was made
    paid_at      datetime2(0)  NULL,                        -- when the money came in; set once, NULL until then
    items        int           NOT NULL,                    -- pieces, over all lines
    total        decimal(12,2) NOT NULL,                    -- what the customer paid, in `currency`
    currency     char(3)       NOT NULL DEFAULT 'USD',      -- ISO 4217
    rate_to_base decimal(18,8) NOT NULL DEFAULT 1,          -- what one unit of `currency` was worth in USD, the base
    is_test      bit           NOT NULL DEFAULT 0,          -- made by the shop's own people
    row_version  rowversion    NOT NULL
);
GO

CREATE INDEX ix_orders_row_version ON shop.orders (row_version);
GO

-- A person's orders by time: what an aggregate over one person reads, and all that it reads.
CREATE INDEX ix_orders_customer ON shop.orders (customer_id, paid_at)
    INCLUDE (status, items, total, rate_to_base, is_test);
GO

-- The one definition of an order that counts. An event is sent for it and lifetime value adds it up,
-- so a journey never sees an order that the profile does not know.
CREATE VIEW shop.paid_orders AS
SELECT
    o.order_id,
    o.customer_id,
    o.placed_at,
    o.paid_at,
    o.items,
    o.total,
    o.currency,
    CAST(o.total * o.rate_to_base AS decimal(18,2)) AS base_total,  -- `total` in the base currency, USD
    o.row_version
FROM shop.orders AS o
WHERE o.paid_at IS NOT NULL
  AND o.status <> 'cancelled'
  AND o.is_test = 0;
GO
