"""From a query to candidates: channels, filters, fusion and the retriever that joins them, online and offline."""
