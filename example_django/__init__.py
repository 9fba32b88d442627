"""Parcelboard: shipping labels for teams, sold by plan. A Django project with pages and a JSON API."""
