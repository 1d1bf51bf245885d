package main

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/maps"
)

// readServices returns the services that a frontend names and whose name is wanted.
func readServices(set *maps.Set, wanted func(name string) bool) ([]serviceView, error) {
	names, err := readAll[uint32, maps.ServiceName](set.ServiceNames)
	if err != nil {
		return nil, err
	}
	frontends, err := readAll[maps.FrontendKey, maps.Frontend](set.Frontends)
	if err != nil {
		return nil, err
	}
	byRecord := map[uint32][]frontendView{}
	for key, frontend := range frontends {
		byRecord[frontend.Index()] = append(byRecord[frontend.Index()], viewFrontend(key, frontend.Kind()))
	}
	ranges, err := readSourceRanges(set)
	if err != nil {
		return nil, err
	}
	services := make([]serviceView, 0, len(byRecord))
	for record, addresses := range byRecord {
		name, known := names[record]
		if !known {
			name = unnamed(record)
		}
		if !wanted(nameOf(name)) {
			continue
		}
		service, err := readService(set, record, nameOf(name), addresses)
		if err != nil {
			return nil, err
		}
		service.SourceRanges = append(service.SourceRanges, ranges[service.ID]...)
		services = append(services, service)
	}
	sortServices(services)
	return services, nil
}

// readSourceRanges returns the prefixes that may use load balancer addresses, sorted, by service id.
func readSourceRanges(set *maps.Set) (map[uint32][]string, error) {
	prefixes := map[uint32][]netip.Prefix{}
	err := maps.EachKey(set.Sources, func(key maps.SourceKey) { prefixes[key.Service] = append(prefixes[key.Service], key.Prefix()) })
	if err != nil {
		return nil, fmt.Errorf("read map sources: %w", err)
	}
	texts := map[uint32][]string{}
	for id, list := range prefixes {
		slices.SortFunc(list, netip.Prefix.Compare)
		for _, prefix := range list {
			texts[id] = append(texts[id], prefix.String())
		}
	}
	return texts, nil
}

// unnamed stands in for the name of a record that has none: it was replaced between two readings.
func unnamed(record uint32) maps.ServiceName {
	var name maps.ServiceName
	copy(name.Name[:], fmt.Sprintf("record %d", record))
	return name
}

// readService returns a service by its record.
func readService(set *maps.Set, index uint32, name string, frontends []frontendView) (serviceView, error) {
	var record maps.Service
	if err := set.Services.Lookup(index, &record); err != nil {
		return serviceView{}, fmt.Errorf("read service record %d: %w", index, err)
	}
	service := serviceView{
		Name:            name,
		ID:              record.Id,
		NoEndpoints:     record.Flags&maps.ServiceNoEndpoints != 0,
		AffinitySeconds: record.AffinityTimeout,
		Restricted:      record.Flags&maps.ServiceSourceRanges != 0,
		SourceRanges:    []string{},
		Inside:          tableView{Algorithm: viewAlgorithm(record.InsideAlgorithm), Slots: record.Inside.Count},
		Outside:         tableView{Algorithm: viewAlgorithm(record.OutsideAlgorithm), Slots: record.Outside.Count},
		Frontends:       frontends,
	}
	var err error
	if service.Traffic, err = readTraffic(set.ServiceStats, record.Id); err != nil {
		return serviceView{}, err
	}
	service.Backends, err = readBackends(set, record)
	return service, err
}

// readBackends returns the backends that either table of a service names.
func readBackends(set *maps.Set, record maps.Service) ([]backendView, error) {
	inside, err := readSlots(set, record.Inside)
	if err != nil {
		return nil, err
	}
	outside, err := readSlots(set, record.Outside)
	if err != nil {
		return nil, err
	}
	backends := make([]backendView, 0, len(inside))
	for index := range inside {
		backend, err := readBackend(set, index)
		if err != nil {
			return nil, err
		}
		backends = append(backends, backend)
	}
	for index := range outside {
		if _, both := inside[index]; both {
			continue
		}
		backend, err := readBackend(set, index)
		if err != nil {
			return nil, err
		}
		backends = append(backends, backend)
	}
	for i := range backends {
		backends[i].InsideShare = inside[backends[i].Index]
		backends[i].OutsideShare = outside[backends[i].Index]
	}
	return backends, nil
}

// readSlots returns the share of a table's slots that each backend index has.
func readSlots(set *maps.Set, table maps.SlotRange) (map[uint32]float64, error) {
	shares := map[uint32]float64{}
	var block maps.SlotBlock
	perBlock := uint32(len(block.Backend))
	for slot := table.Base; slot < table.Base+table.Count; slot++ {
		if slot == table.Base || slot%perBlock == 0 {
			if err := set.Slots.Lookup(slot/perBlock, &block); err != nil {
				return nil, fmt.Errorf("read slot %d: %w", slot, err)
			}
		}
		shares[block.Backend[slot%perBlock]] += 1 / float64(table.Count)
	}
	return shares, nil
}

// readBackend returns a backend by its index.
func readBackend(set *maps.Set, index uint32) (backendView, error) {
	var record maps.Backend
	if err := set.Backends.Lookup(index, &record); err != nil {
		return backendView{}, fmt.Errorf("read backend %d: %w", index, err)
	}
	var load maps.BackendLoad
	if err := set.BackendLoads.Lookup(index, &load); err != nil {
		return backendView{}, fmt.Errorf("read the load of backend %d: %w", index, err)
	}
	quarantined, err := set.IsQuarantined(index, record.Generation)
	if err != nil {
		return backendView{}, err
	}
	traffic, err := readTraffic(set.BackendStats, index)
	return backendView{
		Index:       index,
		Address:     netip.AddrPortFrom(record.Address.Addr(), record.Port).String(),
		Local:       record.Flags&maps.BackendLocal != 0,
		Tunnel:      record.Flags&maps.BackendTunnel != 0,
		Terminating: record.Flags&maps.BackendTerminating != 0,
		Open:        load.Open(),
		Quarantined: quarantined,
		Traffic:     traffic,
	}, err
}
