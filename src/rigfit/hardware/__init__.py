"""What the person has: devices, the catalogue of cards, detection."""
