"""Memory of a step on a device: what is allocated when, and what the allocator and the rest of the card make of it."""
