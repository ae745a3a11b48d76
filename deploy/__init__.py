"""Ways to run the server on other machines."""
