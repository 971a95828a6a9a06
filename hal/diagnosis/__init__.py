"""Which operator is to blame: calls recorded and replayed elsewhere, and commands run again by halves."""
