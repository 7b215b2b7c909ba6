"""Using a trained model: functions over a model that give small frozen results, or write files."""
