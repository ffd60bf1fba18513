"""How any Sightline service runs. No domain noun enters here; see CONTRIBUTING.md for what may."""
