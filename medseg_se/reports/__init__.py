"""What a person looks at: pictures of cases with truth and prediction."""
