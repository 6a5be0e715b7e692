"""What a config will need, found without a device: memory, time, collectives, and what would make it fit."""
