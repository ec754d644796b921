"""Pipeline to Plan: everything decided before anything moves."""
