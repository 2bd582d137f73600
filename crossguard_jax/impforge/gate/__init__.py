"""What stands between a forge's texts and its rows: does a row mean what its label says?"""
