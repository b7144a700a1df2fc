"""Tastes integrated out: by importance sampling around modes, or by simulation; and their posteriors."""
