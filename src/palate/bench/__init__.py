"""What we measure: simulated people and one file per benchmark."""
