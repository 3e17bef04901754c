"""The intake: takes logs from many machines as Helicone would, for the workers of the centre to send on."""
