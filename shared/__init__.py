"""Tidemark: keeps Customer.io true to SQL Server. The modules read in the order of a row's way; see the README."""
