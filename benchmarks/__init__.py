"""What the README's figures come from: networks, peers beside us, and results with device and date."""
