"""Training of Sightline's own detector: data, network, loop, export."""
