"""The vocabulary that every room shares: errors, boxes, headers, parameters, durable files."""
