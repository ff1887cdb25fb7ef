"""The accuracy tables and the HTML report page, with its charts and its gallery."""
