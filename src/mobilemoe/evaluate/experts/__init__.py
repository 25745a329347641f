"""Which experts a text goes to, and what changes when they are left out."""
