"""What each part buys in the small world: tables of many runs, a resumable command each."""
