"""What a training needs beside its trainer: handlers, records, schedules."""
