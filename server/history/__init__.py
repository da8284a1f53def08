"""What happened, on disk: events, their pictures, clips from packets that were sent anyway."""
