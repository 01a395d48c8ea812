"""What people see: the HTML report, the terminal's tables, tables in docs."""
