"""`make faults`: passes as real processes, faults from a seed, and a comparison of SQL Server with Customer.io."""
