"""Projects (tenants): their shares of the workers, their limits, and the order of claims."""
