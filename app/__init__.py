"""The explorer: a Streamlit app over run folders. `saelab explore runs` starts it."""
