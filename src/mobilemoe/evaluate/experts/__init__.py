"""Which experts a text is routed to."""
