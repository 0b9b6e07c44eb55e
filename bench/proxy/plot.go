// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"os"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// palette tells the stacks apart for colour-blind readers too; Redoubt's builds have the first colours.
func palette() []color.Color {
	return []color.Color{
		color.RGBA{0xd5, 0x5e, 0x00, 0xff}, color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff},
		color.RGBA{0x56, 0xb4, 0xe9, 0xff}, color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0x99, 0x99, 0x99, 0xff},
	}
}

// plotTo draws the rates relative to direct above the CPU per request, one group of bars for each workload.
func plotTo(path string, r *results) error {
	var loads []workload
	var labels []string
	for _, w := range r.loads {
		if w.rate == 0 {
			loads = append(loads, w)
			labels = append(labels, strings.ReplaceAll(strings.ReplaceAll(w.title, " of 64 B", ""), ", ", "\n"))
		}
	}
	var proxies []column
	for _, c := range r.columns {
		if c.proxy {
			proxies = append(proxies, c)
		}
	}
	if len(loads) == 0 || len(proxies) == 0 {
		fmt.Fprintln(os.Stderr, "nothing to plot: no proxy, or no workload without a fixed rate")
		return nil
	}
	rates, err := bars("Rate relative to a direct connection", "× direct", loads, labels, proxies, func(w workload, c column) float64 {
		q, ok := r.ratio(w.name, c.name, "direct")
		if !ok {
			return 0
		}
		return q
	})
	if err != nil {
		return err
	}
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.XMin, one.XMax = -0.6, float64(len(loads))-0.4
	one.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	rates.Add(one)
	cpu, err := bars("Proxy CPU per request", "µs", loads, labels, proxies, func(w workload, c column) float64 {
		f, _ := r.of(w.name, c.name, proxyCPU)
		return f.median
	})
	if err != nil {
		return err
	}
	return draws(path, rates, cpu, vg.Length(2+2.2*(float64(len(loads))+legendRoom))*vg.Centimeter)
}

// legendRoom is the width that the legend has at the right, in groups of bars.
const legendRoom = 1.7

func bars(title, unit string, loads []workload, labels []string, proxies []column, of func(workload, column) float64) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text, p.Y.Min = title, unit, 0
	p.Legend.Top = true
	p.NominalX(labels...)
	p.X.Tick.Label.Font.Size = vg.Points(8)
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	p.Add(grid)
	width := vg.Centimeter * 1.6 / vg.Length(len(proxies))
	for i, c := range proxies {
		var v plotter.Values
		for _, w := range loads {
			v = append(v, of(w, c))
		}
		b, err := plotter.NewBarChart(v, width)
		if err != nil {
			return nil, fmt.Errorf("bars of %s: %w", c.name, err)
		}
		b.LineStyle.Width = 0
		b.Color = palette()[i%len(palette())]
		b.Offset = width * (vg.Length(i) - vg.Length(len(proxies)-1)/2)
		p.Add(b)
		p.Legend.Add(c.name, b)
	}
	p.X.Min, p.X.Max = -0.6, float64(len(loads))+legendRoom-0.4
	return p, nil
}

// draws writes two plots, one above the other, as PNG.
func draws(path string, above, below *plot.Plot, width vg.Length) error {
	img := vgimg.New(width, 22*vg.Centimeter)
	rows := [][]*plot.Plot{{above}, {below}}
	tiles := draw.Tiles{Rows: 2, Cols: 1, PadY: vg.Centimeter, PadTop: vg.Points(6), PadRight: vg.Points(6), PadLeft: vg.Points(6), PadBottom: vg.Points(6)}
	for i, row := range plot.Align(rows, tiles, draw.New(img)) {
		rows[i][0].Draw(row[0])
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(f); err != nil {
		_ = f.Close()
		return fmt.Errorf("write: %w", err)
	}
	return f.Close()
}
