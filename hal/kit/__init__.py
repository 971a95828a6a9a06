"""What a vendor's engineer starts from: `hal new-backend` writes a backend that passes the suite on day one."""
