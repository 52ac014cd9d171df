"""Getting what others have: blocks, snapshots of the state, models; and giving it."""
