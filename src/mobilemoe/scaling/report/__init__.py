"""A fit as people read it: pictures and a page."""
