"""Turn a Pipeline into a Plan: everything decided before anything moves."""
