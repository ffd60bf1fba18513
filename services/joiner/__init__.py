"""The join of button and camera in Faust; Faust stays inside this folder."""
