"""How the engine is tried: crashes at every commit, random schedules, planted bugs, bad lines."""
